//! The host's world with slow backing devices: the "disk" of the demo is a file on the device that
//! its "cache" is on.

use ubcache_daemon::served::world::World;
use ubcache_daemon::{Failure, Ready, ServeConfig, serve_in};
use ubcache_env::{
    Buf, BufPool, Device, DeviceLimits, Durability, Env, IoResult, IoVec, Nanos, Priority, Sector,
    SectorRange, Task,
};
use ubcache_host::{HostEnv, HostFile};

/// A world in which every read of a backing device takes some time at least.
#[derive(Clone, Debug)]
pub struct SlowWorld {
    host: HostEnv,
    delay: Nanos,
}

impl SlowWorld {
    /// Serves in such a world.
    pub fn serve(
        config: &ServeConfig,
        delay: Nanos,
        ready: impl FnOnce(&Ready),
    ) -> Result<(), Failure> {
        serve_in(config, |host| SlowWorld { host, delay }, ready)
    }
}

impl World for SlowWorld {
    fn host(&self) -> &HostEnv {
        &self.host
    }
    fn cache(&self, file: HostFile) -> SlowFile {
        SlowFile { file, host: self.host.clone(), delay: Nanos(0) }
    }
    fn backing(&self, file: HostFile) -> SlowFile {
        SlowFile { file, host: self.host.clone(), delay: self.delay }
    }
}

impl Env for SlowWorld {
    type Device = SlowFile;

    fn now(&self) -> Nanos {
        self.host.now()
    }
    fn unix_seconds(&self) -> u64 {
        self.host.unix_seconds()
    }
    async fn sleep_until(&self, at: Nanos) {
        self.host.sleep_until(at).await;
    }
    fn spawn(&self, priority: Priority, task: impl Future<Output = ()> + 'static) -> Task {
        self.host.spawn(priority, task)
    }
    fn buffers(&self) -> &BufPool {
        self.host.buffers()
    }
    fn random(&self) -> u64 {
        self.host.random()
    }
    async fn yield_now(&self) {
        self.host.yield_now().await;
    }
}

/// A file or block device whose reads are delayed.
#[derive(Debug)]
pub struct SlowFile {
    file: HostFile,
    host: HostEnv,
    delay: Nanos,
}

impl Device for SlowFile {
    fn limits(&self) -> DeviceLimits {
        self.file.limits()
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        let started = self.host.now();
        let done = self.file.read(at, into).await;
        if self.delay > Nanos(0) {
            self.host.sleep_until(started.after(self.delay)).await;
        }
        done
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.file.write(at, from, durability).await
    }
    async fn flush(&self) -> IoResult {
        self.file.flush().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        self.file.discard(range).await
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.file.write_zeroes(range).await
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        self.file.allocate(range).await
    }
}
