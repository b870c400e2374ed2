//! Writes of data that lies in memory of somebody else, who may change it at any moment (T0).

use std::rc::Rc;

use ubcache_env::{Env, ForeignMemory, SectorRange, StreamId, Volume, VolumeError};

use super::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// T0: copied once, before the write enters the table.
    pub(crate) async fn write_copied(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        #[cfg(feature = "mutants")]
        if !self.context.keeps(crate::rules::Rule::T0CopiedOnce) {
            return self.write_uncopied(stream, range, data, fua).await;
        }
        self.write(stream, range, data.copy().into(), fua).await
    }
}
