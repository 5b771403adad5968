"""A student learns from a teacher: losses, and the teacher's targets."""
