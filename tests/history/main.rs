//! The checkers of histories, held to histories whose answer is known. The simulation and the process-level harness use
//! the same files.

mod linearizable;
mod register;
mod tests;
