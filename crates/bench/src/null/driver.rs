//! A driver of ublk that has the next request at once, and takes data without copying it.

use std::cell::{Cell, RefCell};

use ubcache_env::{Buf, Command, CommandDevice, Env, IoVec};
use ubcache_ublk::abi::{IO_RES_ABORT, IO_RES_OK, IoDescriptor, op};
use zerocopy::{FromZeros, IntoBytes};

use crate::null::NullEnv;
use crate::null::rig::REQUESTS_PER_TURN;

/// Reads of one block each, in one slot, until there are none any more.
pub struct NullDriver<N> {
    env: NullEnv,
    /// Gives the first sector of the next read.
    next: RefCell<N>,
    left: Cell<u64>,
    sectors: u32,
    at: Cell<u64>,
}

impl<N: FnMut() -> u64> NullDriver<N> {
    /// So many reads of `sectors` sectors at places that `next` chooses.
    pub fn new(env: NullEnv, requests: u64, sectors: u32, next: N) -> NullDriver<N> {
        NullDriver {
            env,
            next: RefCell::new(next),
            left: Cell::new(requests),
            sectors,
            at: Cell::new(0),
        }
    }
}

impl<N: FnMut() -> u64 + 'static> CommandDevice for NullDriver<N> {
    async fn command(&self, _: Command, memory: Option<Buf>) -> (Option<Buf>, i32) {
        let left = self.left.get();
        if left == 0 {
            return (memory, IO_RES_ABORT);
        }
        if left.is_multiple_of(REQUESTS_PER_TURN) {
            self.env.yield_now().await;
        }
        self.left.set(left - 1);
        self.at.set((self.next.borrow_mut())());
        (memory, IO_RES_OK)
    }

    fn shared(&self, _: usize, into: &mut [u8]) {
        let mut request = IoDescriptor::new_zeroed();
        request.op_flags = u32::from(op::READ);
        request.sectors = self.sectors;
        request.start = self.at.get();
        into.copy_from_slice(request.as_bytes());
    }

    fn copy_out(&self, _: u64, _: &mut [u8]) -> Result<(), i32> {
        Ok(())
    }

    fn copy_in(&self, _: u64, _: &IoVec) -> Result<(), i32> {
        Ok(())
    }
}
