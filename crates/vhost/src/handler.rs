//! Requests of the monitor, carried out on the device. None of them waits: a queue that is asked
//! for its place has been stopped before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use ubcache_env::{Env, PassedFiles, Volume};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};

use crate::QUEUE_SIZE_MAX;
use crate::device::{Device, Ring};
use crate::inflight::InflightRegion;
use crate::memory::{MemoryTable, map_file};

/// Parts of shared memory, at most.
const MEMORY_SLOTS_MAX: usize = 509;

/// The device behind the messages of a monitor.
pub(crate) struct Handler<E: PassedFiles, V> {
    env: E,
    pub(crate) device: Rc<Device<E, V, E::Bell>>,
    memory: RefCell<MemoryTable>,
    /// Places of the next requests of queues that were stopped.
    bases: RefCell<BTreeMap<u32, u16>>,
    /// The last reason why a request was refused, in words.
    refusal: RefCell<Option<String>>,
    protocol: Cell<u64>,
}

impl<E: Env + PassedFiles, V: Volume> Handler<E, V> {
    pub(crate) fn new(env: E, device: Rc<Device<E, V, E::Bell>>) -> Handler<E, V> {
        Handler {
            env,
            device,
            memory: RefCell::default(),
            bases: RefCell::default(),
            refusal: RefCell::default(),
            protocol: Cell::new(0),
        }
    }

    /// Stops a queue, before its place is asked for.
    pub(crate) async fn stop(&self, index: u32) {
        if let Ok(base) = self.device.stop(index).await {
            self.bases.borrow_mut().insert(index, base);
        }
    }

    /// Takes the last reason why a request was refused.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        self.refusal.take()
    }

    fn refuse(&self, reason: impl ToString) -> Error {
        *self.refusal.borrow_mut() = Some(reason.to_string());
        Error::InvalidParam
    }

    fn or_refuse<T, R: ToString>(&self, result: std::result::Result<T, R>) -> Result<T> {
        result.map_err(|reason| self.refuse(reason))
    }

    fn bell(&self, file: Option<File>) -> Result<Option<E::Bell>> {
        let bell = file.map(|file| self.env.bell(OwnedFd::from(file))).transpose();
        self.or_refuse(bell)
    }

    /// Replaces the memory, if the table makes sense.
    fn use_memory(&self, table: MemoryTable) -> Result<()> {
        self.device.set_memory(self.or_refuse(table.memory())?);
        *self.memory.borrow_mut() = table;
        Ok(())
    }

    fn guest_address(&self, user: u64) -> Result<u64> {
        self.memory
            .borrow()
            .guest_address(user)
            .ok_or_else(|| self.refuse(format!("a ring at {user:#x} is in no shared memory")))
    }

    fn in_memory_of(&self, inflight: &VhostUserInflight, file: File) -> Result<InflightRegion> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        let mapping = self.or_refuse(map_file(file, inflight.mmap_offset, inflight.mmap_size))?;
        InflightRegion::over(Arc::new(mapping), queues, size).ok_or_else(|| {
            self.refuse(format!(
                "memory of {} bytes is too short for the requests of {queues} queues of {size}",
                { inflight.mmap_size }
            ))
        })
    }
}

impl<E: Env + PassedFiles, V: Volume> VhostUserBackendReqHandler for Handler<E, V> {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        Err(Error::InvalidOperation("reset"))
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.device.offered())
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if self.device.set_features(features) {
            return Ok(());
        }
        let offered = self.device.offered();
        Err(self.refuse(format!("features {features:#x} were chosen of {offered:#x}")))
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut table = MemoryTable::default();
        for (region, file) in regions.iter().zip(files) {
            self.or_refuse(table.add(region, file))?;
        }
        self.use_memory(table)?;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.or_refuse(self.device.set_size(index, num))
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let ring = Ring {
            descriptors: self.guest_address(descriptor)?,
            available: self.guest_address(available)?,
            used: self.guest_address(used)?,
        };
        self.or_refuse(self.device.set_ring(index, ring))
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.or_refuse(self.device.set_base(index, base as u16))
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let base = self.bases.borrow_mut().remove(&index);
        let base = base.ok_or_else(|| self.refuse(format!("there is no queue {index}")))?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Result<()> {
        let none = || self.refuse("a queue without a kick can't be served: it would be polled");
        let kick = self.bell(file)?.ok_or_else(none)?;
        self.or_refuse(self.device.start(u32::from(index), kick))
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Result<()> {
        let call = self.bell(file)?;
        self.or_refuse(self.device.set_call(u32::from(index), call))
    }

    fn set_vring_err(&self, index: u8, file: Option<File>) -> Result<()> {
        let error = self.bell(file)?;
        self.or_refuse(self.device.set_error(u32::from(index), error))
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        self.protocol.set(features);
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(u64::from(self.device.queue_count()))
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.or_refuse(self.device.set_enabled(index, enable))
    }

    fn get_config(&self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.device.config(offset, size))
    }

    fn set_config(&self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        if self.device.set_config(offset, bytes) {
            return Ok(());
        }
        Err(self.refuse(format!("byte {offset} of the configuration can't be changed so")))
    }

    fn set_gpu_socket(&self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no display"))
    }

    fn get_shared_object(&self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn get_inflight_fd(&self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        if queues > self.device.queue_count() || size > QUEUE_SIZE_MAX {
            return Err(self.refuse(format!("{queues} queues of {size} are more than there are")));
        }
        let bytes = InflightRegion::bytes(queues, size) as u64;
        let made: io::Result<File> = self.env.memory_file(bytes);
        let file = self.or_refuse(made)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let region = self.in_memory_of(inflight, file)?;
        self.or_refuse(self.device.set_inflight(region))
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MEMORY_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mut table = self.memory.borrow().clone();
        if table.len() >= MEMORY_SLOTS_MAX {
            return Err(self.refuse(format!("more than {MEMORY_SLOTS_MAX} parts of memory")));
        }
        self.or_refuse(table.add(region, file))?;
        self.use_memory(table)?;
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, bytes, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let mut table = self.memory.borrow().clone();
        if !table.remove(guest, bytes, user) {
            return Err(self.refuse(format!("there is no memory at {guest:#x} to take away")));
        }
        self.use_memory(table)
    }

    fn set_device_state_fd(
        &self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk has no state to transfer"))
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no state to transfer"))
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk has no memory of its own"))
    }

    fn set_log_base(&self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("changes of memory are not logged"))
    }
}
