//! A volume that serves one request at a time, in order of arrival, as a busy disk does.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::local::Lock;
use ubcache_env::{
    BlockStatus, Env, IoVec, SectorRange, StreamEnd, StreamId, Volume, VolumeError, VolumeInfo,
};

use super::world::TestEnv;

/// Bytes that are served between two turns of the other tasks.
const STEP_BYTES: u64 = 64 << 10;

pub struct SlowVolume {
    env: TestEnv,
    disk: Lock,
    /// Bytes served so far.
    pub served: Cell<u64>,
}

impl SlowVolume {
    pub fn new(env: &TestEnv) -> Rc<SlowVolume> {
        Rc::new(SlowVolume { env: env.clone(), disk: Lock::default(), served: Cell::new(0) })
    }

    async fn serve(&self, bytes: u64) {
        let _turn = self.disk.lock().await;
        let mut left = bytes;
        while left > 0 {
            let step = left.min(STEP_BYTES);
            self.env.yield_now().await;
            self.served.set(self.served.get() + step);
            left -= step;
        }
    }
}

impl Volume for SlowVolume {
    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            name: "slow".to_owned(),
            sectors: 1 << 20,
            block_bytes: 512,
            preferred_bytes: 4096,
            read_only: false,
        }
    }
    async fn read(&self, _: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.serve(range.bytes()).await;
        Ok(IoVec::zeroes(range.bytes() as usize))
    }
    async fn write(
        &self,
        _: StreamId,
        range: SectorRange,
        _: IoVec,
        _: bool,
    ) -> Result<(), VolumeError> {
        self.serve(range.bytes()).await;
        Ok(())
    }
    async fn write_bytes(&self, _: StreamId, _: u64, _: IoVec, _: bool) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn discard(&self, _: StreamId, _: SectorRange, _: bool) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn write_zeroes(
        &self,
        _: StreamId,
        _: SectorRange,
        _: bool,
        _: bool,
    ) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn flush(&self, _: StreamId) -> Result<(), VolumeError> {
        Ok(())
    }
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}
    async fn prefetch(&self, _: StreamId, _: SectorRange) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        Ok(vec![(range, BlockStatus::default())])
    }
}
