//! The reactor, for a daemon or for a command.

use ubcache_host::{Host, IoBackend};

use crate::failure::Failure;

/// The reactor, over the way of I/O that this machine has.
pub(crate) fn start_io() -> Result<Host, Failure> {
    Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))
}
