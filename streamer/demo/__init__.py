"""The whole line on one machine: a real broker, real photographs, real weights, and a page that
shows every decision."""
