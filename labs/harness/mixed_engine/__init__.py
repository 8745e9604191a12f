"""An engine made of the learner's, our and the reference's parts; and whose error it is."""
