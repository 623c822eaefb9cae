//! What a move needs before any byte travels: who may move, and who decides when.
//!
//! * [`facts`] reads everything about one process from `/proc` (the only I/O here).
//! * [`eligible`] judges these facts: movable with a plan of what must be pumped, or the reasons in words why it stays.
//! * [`commit`] is the protocol by which a body changes nodes without ever running twice, as state machines without I/O.

pub mod commit;
pub mod eligible;
pub mod facts;
