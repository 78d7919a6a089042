//! `keelfs mount` and `keelfs umount`.
use crate::cli::args::{MountArgs, UmountArgs};
use crate::cli::error::CliResult;
use crate::cli::output::Output;
pub fn mount(args: MountArgs, output: Output) -> CliResult {
    Ok(())
}
pub fn umount(args: UmountArgs, output: Output) -> CliResult {
    Ok(())
}
