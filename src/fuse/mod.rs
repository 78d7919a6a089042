//! SKELETON: what `node` expects; the room's owner fills it.

use crate::volume::Volume;
use std::path::Path;

#[derive(Clone, Debug, Default)]
pub struct MountOptions {}

/// A mount that is served; dropping it unmounts.
pub struct MountHandle {}

impl MountHandle {
    /// Unmount and wait until the kernel has let go.
    pub fn unmount(self) -> anyhow::Result<()> {
        unimplemented!()
    }
}

pub fn mount(volume: Volume, path: &Path, options: MountOptions) -> anyhow::Result<MountHandle> {
    unimplemented!()
}
