"""How the processes of a run come to be and meet: what launchers tell, the rendezvous, the process group."""
