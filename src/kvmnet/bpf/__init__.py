"""Which frames are meant: expressions in the language of pcap-filter(7), and the kernel's classic BPF for them. Pure."""
