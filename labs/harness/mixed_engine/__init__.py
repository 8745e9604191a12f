"""An engine made of the learner's, our and the reference's parts; and finding the part that an error belongs to."""
