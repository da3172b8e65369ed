"""The networks of Sec. 3.1 and 3.2: triplane generator, upsamplers, discriminators, and how they are trained on."""
