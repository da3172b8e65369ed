"""The measures of `cad toyworld check`: one file per model, and the quantities that they share."""
