//! Messages between nodes: codec, node identity, TLS, sealed gossip.
//!
//! What every other crate uses to talk to another node, and nothing about *what* is said:
//!
//! * [`cluster`] makes and reads a cluster's folder: its certificate authority, each node's certificate, the gossip key
//!   and the list of members. Being in that list, with a certificate of that authority, *is* being a member.
//! * [`tls`] opens and accepts TLS 1.3 connections on which both sides have proved which member they are.
//! * [`blocking`] hands such a connection to a thread that blocks.
//! * [`frame`] sends typed messages and raw chunks over such a connection (or over any byte stream).
//! * [`gossip`] seals and opens the single datagrams of the load gossip.
//! * [`control`] is the protocol between `mosixctl` and its own node's daemon.
//!
//! Everything that arrives is bounded before it is stored and can only yield an error, never a panic.

pub mod blocking;
pub mod cluster;
pub mod control;
pub mod frame;
pub mod gossip;
pub mod tls;
