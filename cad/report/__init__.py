"""Tables, figures and pages, from artefact files alone: nothing here imports a model or torch."""
