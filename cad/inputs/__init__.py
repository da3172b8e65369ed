"""Sec. 4: an object's picture and prompt, brought to the form that the prior was trained on."""
