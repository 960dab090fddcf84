"""Where files are: folders of this machine and object stores behind one interface, `Store`."""
