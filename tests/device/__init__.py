"""What a GPU would refuse or wait for, found without one."""
