//! mosixd, the node daemon.
fn main() {}
