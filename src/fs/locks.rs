//! SKELETON: replicated locks.
