"""Guests that kvmnet runs itself: their image, accelerator, life and console."""
