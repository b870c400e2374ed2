//! Numbers and structures of the driver: its interface, as `<linux/ublk_cmd.h>` publishes it.
//!
//! All numbers are in the order of the machine's bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Commands of the control device. Each is the number of an ioctl with a [`ControlCommand`].
pub mod control {
    use super::{READ, READ_WRITE, ioctl};

    const BYTES: u32 = size_of::<super::ControlCommand>() as u32;

    /// Makes a device.
    pub const ADD_DEV: u32 = ioctl(READ_WRITE, 0x04, BYTES);
    /// Removes a device; waits until nobody has it open or mapped.
    pub const DEL_DEV: u32 = ioctl(READ_WRITE, 0x05, BYTES);
    /// Makes the block device appear, when every queue has its commands.
    pub const START_DEV: u32 = ioctl(READ_WRITE, 0x06, BYTES);
    /// Makes the block device disappear; requests fail.
    pub const STOP_DEV: u32 = ioctl(READ_WRITE, 0x07, BYTES);
    /// Sets the properties of the block device.
    pub const SET_PARAMS: u32 = ioctl(READ_WRITE, 0x08, BYTES);
    /// Reads them.
    pub const GET_PARAMS: u32 = ioctl(READ, 0x09, BYTES);
    /// Begins to serve a device whose server is gone.
    pub const START_USER_RECOVERY: u32 = ioctl(READ_WRITE, 0x10, BYTES);
    /// Ends that: requests come again.
    pub const END_USER_RECOVERY: u32 = ioctl(READ_WRITE, 0x11, BYTES);
    /// Reads a [`super::DeviceInfoRaw`]. Takes a path, for every device.
    pub const GET_DEV_INFO2: u32 = ioctl(READ, 0x12, BYTES);
    /// Reads the abilities of the driver (Linux 6.5).
    pub const GET_FEATURES: u32 = ioctl(READ, 0x13, BYTES);
    /// Changes the size of the block device (Linux 6.16).
    pub const UPDATE_SIZE: u32 = ioctl(READ_WRITE, 0x15, BYTES);
    /// Keeps new requests in the kernel, for the next server (Linux 6.16).
    pub const QUIESCE_DEV: u32 = ioctl(READ_WRITE, 0x16, BYTES);
}

/// Commands of a queue. Each is the number of an ioctl with an [`IoCommand`].
pub mod io {
    use super::{READ_WRITE, ioctl};

    const BYTES: u32 = size_of::<super::IoCommand>() as u32;

    /// Waits for the first request of a slot.
    pub const FETCH_REQ: u32 = ioctl(READ_WRITE, 0x20, BYTES);
    /// Answers the request of a slot, and waits for the next.
    pub const COMMIT_AND_FETCH_REQ: u32 = ioctl(READ_WRITE, 0x21, BYTES);
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;

/// `_IOR` and `_IOWR` of the group `u`.
const fn ioctl(direction: u32, number: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

/// Operations of requests: the low byte of [`IoDescriptor::op_flags`].
pub mod op {
    /// Reads sectors.
    pub const READ: u8 = 0;
    /// Writes sectors.
    pub const WRITE: u8 = 1;
    /// Makes what was written durable.
    pub const FLUSH: u8 = 2;
    /// Gives sectors up.
    pub const DISCARD: u8 = 3;
    /// Makes sectors zero.
    pub const WRITE_ZEROES: u8 = 5;
}

/// Flags of requests: the rest of [`IoDescriptor::op_flags`].
pub mod op_flag {
    /// The write is durable when it is answered.
    pub const FUA: u32 = 1 << 13;
    /// Zeroed sectors keep their space.
    pub const NOUNMAP: u32 = 1 << 15;
    /// The data has no place: it could not be put under the number of the slot.
    pub const NO_PLACE: u32 = 1 << 17;
}

/// Result of a command that has a request.
pub const IO_RES_OK: i32 = 0;
/// Result of a command without one: the device ends, or another server goes on (-ENODEV).
pub const IO_RES_ABORT: i32 = -19;

/// Position of the data of requests in the character device, with user copy.
pub const BUFFERS_AT: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;
const QUEUE_SHIFT: u32 = TAG_SHIFT + 16;

/// The most slots of a queue.
pub const DEPTH_MAX: u16 = 4096;

/// Position of the data of a request in the character device, with user copy.
pub fn buffer_at(queue: u16, slot: u16) -> u64 {
    BUFFERS_AT + (u64::from(queue) << QUEUE_SHIFT) + (u64::from(slot) << TAG_SHIFT)
}

/// The word beside a command by which the data of a slot's requests gets a place: its number in the
/// table of the ring. Where that does not work, the request comes with [`op_flag::NO_PLACE`].
pub fn place_word(number: Option<u32>) -> u64 {
    const OR_NONE: u64 = 1 << 16;
    // A number that no table has: requests have no places.
    let number = number.and_then(|number| u16::try_from(number).ok()).unwrap_or(u16::MAX);
    u64::from(number) | OR_NONE
}

/// Position of the descriptors of a queue in the mapping of the character device.
pub fn descriptors_at(queue: u16) -> u64 {
    let bytes = usize::from(DEPTH_MAX) * size_of::<IoDescriptor>();
    u64::from(queue) * bytes as u64
}

/// A control command.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControlCommand {
    /// Number of the device; all ones for "any".
    pub device: u32,
    /// Number of the queue; all ones for none.
    pub queue: u16,
    /// Bytes of the data.
    pub len: u16,
    /// Address of the data.
    pub address: u64,
    /// A value, by command.
    pub value: u64,
    /// Bytes of a path at the start of the data, for devices without privileges.
    pub path_len: u16,
    /// Padding.
    pub pad: u16,
    /// For later versions.
    pub reserved: u32,
}

impl ControlCommand {
    /// The bytes for the driver.
    pub fn to_bytes(self) -> [u8; size_of::<ControlCommand>()] {
        zerocopy::transmute!(self)
    }
}

/// Byte of a control command with the address of its data.
pub const CONTROL_ADDRESS_AT: usize = std::mem::offset_of!(ControlCommand, address);

/// A command of a queue.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoCommand {
    /// Number of the queue.
    pub queue: u16,
    /// Slot of the queue: the tag of its requests.
    pub slot: u16,
    /// Result of the request that is answered: bytes, or a negative errno.
    pub result: i32,
    /// Address of the memory for data, without user copy.
    pub address: u64,
}

/// A request, in the mapping of the character device.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoDescriptor {
    /// Operation and flags.
    pub op_flags: u32,
    /// Sectors of 512 bytes.
    pub sectors: u32,
    /// The first sector.
    pub start: u64,
    /// Address of the memory for data, without user copy.
    pub address: u64,
}

/// Numbers of a device.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfoRaw {
    /// Queues.
    pub queues: u16,
    /// Slots of a queue.
    pub depth: u16,
    /// State, see [`crate::DeviceState`].
    pub state: u16,
    /// Padding.
    pub pad0: u16,
    /// The most bytes of a request.
    pub max_io_bytes: u32,
    /// Number of the device; all ones at its making: any.
    pub device: u32,
    /// Process that serves it.
    pub pid: i32,
    /// Padding.
    pub pad1: u32,
    /// Abilities that are used, see [`crate::Features`].
    pub flags: u64,
    /// A number that the driver keeps for the server.
    pub server_flags: u64,
    /// Owner of a device without privileges.
    pub owner_uid: u32,
    /// Its group.
    pub owner_gid: u32,
    /// For later versions.
    pub reserved1: u64,
    /// For later versions.
    pub reserved2: u64,
}

/// Properties of the block device: kinds that are there, and basic properties.
#[derive(Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParametersRaw {
    /// Bytes of this structure.
    pub len: u32,
    /// Kinds that count: [`PARAM_BASIC`], [`PARAM_DISCARD`].
    pub kinds: u32,
    /// [`attribute`].
    pub attributes: u32,
    /// Logarithm of the logical block.
    pub logical_shift: u8,
    /// Logarithm of the physical block.
    pub physical_shift: u8,
    /// Logarithm of the best size of a request.
    pub optimal_shift: u8,
    /// Logarithm of the smallest good size of a request.
    pub minimal_shift: u8,
    /// The most sectors of a request.
    pub max_sectors: u32,
    /// Sectors that a request must not cross, or 0.
    pub chunk_sectors: u32,
    /// Sectors of the device.
    pub device_sectors: u64,
    /// Boundary of memory pieces.
    pub virtual_boundary: u64,
    /// Discard: the offset of the first whole unit.
    pub discard_alignment: u32,
    /// Discard: bytes of a unit.
    pub discard_granularity: u32,
    /// The most sectors of a discard.
    pub max_discard_sectors: u32,
    /// The most sectors of a write of zeroes.
    pub max_zeroes_sectors: u32,
    /// The most ranges of a discard.
    pub max_discard_segments: u16,
    /// For later versions.
    pub reserved0: u16,
    /// Padding to whole words.
    pub pad: u32,
}

/// [`ParametersRaw`] has basic properties.
pub const PARAM_BASIC: u32 = 1;
/// [`ParametersRaw`] has properties of discards.
pub const PARAM_DISCARD: u32 = 2;
/// Bytes of [`ParametersRaw`] that the driver knows: without the padding at its end.
pub const PARAMETERS_BYTES: usize = std::mem::offset_of!(ParametersRaw, pad);

/// Attributes of the block device.
pub mod attribute {
    /// It can't be written.
    pub const READ_ONLY: u32 = 1 << 0;
    /// It has a cache that loses what was not flushed.
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// It knows durable writes.
    pub const FUA: u32 = 1 << 3;
}

const _: () = {
    assert!(size_of::<ControlCommand>() == 32);
    assert!(size_of::<IoCommand>() == 16);
    assert!(size_of::<IoDescriptor>() == 24);
    assert!(size_of::<DeviceInfoRaw>() == 64);
    assert!(size_of::<ParametersRaw>() == 64);
    assert!(PARAMETERS_BYTES == 60);
};
