"""What instructors and authors run: starters from solutions, and proofs that a lab's tests judge rightly."""
