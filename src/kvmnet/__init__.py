"""kvmnet: networking for KVM hosts, declared in one document."""

__version__ = "0.1.0"
