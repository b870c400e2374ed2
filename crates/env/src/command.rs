//! Character devices of the kernel that hand out requests by commands of io_uring: ublk.

use crate::buf::{Buf, IoVec};

/// A command for the driver of a character device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Number of the command.
    pub code: u32,
    /// The command itself, as the driver defines it.
    pub payload: [u8; 16],
    /// A word for the driver beside the command.
    pub word: u64,
}

/// Byte of [`Command::payload`] at which the address of the memory stands, if there is some.
pub const COMMAND_ADDRESS_AT: usize = 8;

/// A character device whose driver keeps commands until it has a request, and copies data between
/// the memory of its requesters and that of this process.
///
/// Errors are errno values.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait CommandDevice: 'static {
    /// Gives the driver a command and waits for its completion: a result, or a negative errno. The
    /// driver may use `memory` until then, also after the future was dropped.
    async fn command(&self, command: Command, memory: Option<Buf>) -> (Option<Buf>, i32);

    /// Number of the [`Place`](crate::Place) that the driver may give to data of the requests of a
    /// slot. None: such places can't be had.
    fn place(&self, slot: u16) -> Option<u32> {
        let _ = slot;
        None
    }

    /// Copies from the memory that the driver shares, from its byte `at` on.
    fn shared(&self, at: usize, into: &mut [u8]);

    /// Copies from position `at` of the device: data of a requester.
    fn copy_out(&self, at: u64, into: &mut [u8]) -> Result<(), i32>;

    /// Copies to position `at` of the device: data for a requester.
    fn copy_in(&self, at: u64, from: &IoVec) -> Result<(), i32>;
}
