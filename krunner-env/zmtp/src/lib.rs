//! ZMTP 3.0/3.1 (NULL) without I/O.
