"""Jobs of independent parts, dealt to array tasks, MPI ranks and workers, each part written once and whole."""
