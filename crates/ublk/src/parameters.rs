//! Properties of a volume in the form of the driver.

use ubcache_env::VolumeInfo;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{PARAM_BASIC, PARAM_DISCARD, PARAMETERS_BYTES, ParametersRaw, attribute};

/// The largest logical block that a block device of the kernel has.
const LOGICAL_MAX: u32 = 4096;
/// The most sectors of a discard or a write of zeroes: 1 GiB, so that one does not take for ever.
const LONG_SECTORS_MAX: u32 = 1 << 21;

/// Properties of a block device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Parameters {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest request in bytes.
    pub logical_bytes: u32,
    /// Request size in bytes below which a request costs more than it should.
    pub physical_bytes: u32,
    /// The most bytes of a read or write.
    pub max_io_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
}

impl Parameters {
    /// Those of a volume. An error says why it can't be a block device.
    pub fn of(volume: &VolumeInfo, max_io_bytes: u32) -> Result<Parameters, String> {
        if volume.block_bytes > LOGICAL_MAX {
            return Err(format!(
                "its blocks have {} bytes, and a block device of the kernel has at most \
                 {LOGICAL_MAX}",
                volume.block_bytes
            ));
        }
        let logical_bytes = volume.block_bytes.max(512);
        let block = u64::from(logical_bytes / 512);
        Ok(Parameters {
            sectors: volume.sectors / block * block,
            logical_bytes,
            physical_bytes: volume.preferred_bytes.clamp(logical_bytes, LOGICAL_MAX),
            max_io_bytes,
            read_only: volume.read_only,
        })
    }

    /// The bytes for SET_PARAMS.
    pub fn to_bytes(&self) -> Vec<u8> {
        let writes = attribute::VOLATILE_CACHE | attribute::FUA;
        let raw = ParametersRaw {
            len: PARAMETERS_BYTES as u32,
            kinds: PARAM_BASIC | PARAM_DISCARD,
            attributes: writes | if self.read_only { attribute::READ_ONLY } else { 0 },
            logical_shift: self.logical_bytes.ilog2() as u8,
            physical_shift: self.physical_bytes.ilog2() as u8,
            optimal_shift: self.max_io_bytes.ilog2() as u8,
            minimal_shift: self.physical_bytes.ilog2() as u8,
            max_sectors: self.max_io_bytes / 512,
            device_sectors: self.sectors,
            discard_granularity: self.physical_bytes,
            max_discard_sectors: LONG_SECTORS_MAX,
            max_zeroes_sectors: LONG_SECTORS_MAX,
            max_discard_segments: 1,
            ..ParametersRaw::default()
        };
        raw.as_bytes()[..PARAMETERS_BYTES].to_vec()
    }

    /// Bytes of memory for [`Parameters::from_bytes`], with the length that the driver is told.
    pub fn room() -> Vec<u8> {
        let raw = ParametersRaw { len: PARAMETERS_BYTES as u32, ..ParametersRaw::default() };
        raw.as_bytes()[..PARAMETERS_BYTES].to_vec()
    }

    /// Reads the answer of GET_PARAMS.
    pub fn from_bytes(bytes: &[u8]) -> Option<Parameters> {
        let mut whole = [0; size_of::<ParametersRaw>()];
        whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let raw = ParametersRaw::read_from_bytes(&whole).ok()?;
        let size = |shift: u8| 1_u32.checked_shl(u32::from(shift));
        Some(Parameters {
            sectors: raw.device_sectors,
            logical_bytes: size(raw.logical_shift)?,
            physical_bytes: size(raw.physical_shift)?,
            max_io_bytes: raw.max_sectors.checked_mul(512)?,
            read_only: raw.attributes & attribute::READ_ONLY != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(block_bytes: u32) -> VolumeInfo {
        VolumeInfo {
            name: "data".to_owned(),
            sectors: 8193,
            block_bytes,
            preferred_bytes: 65536,
            read_only: false,
        }
    }

    #[test]
    fn parameters_survive_the_form_of_the_driver() {
        for block in [512, 4096] {
            let of_volume = Parameters::of(&volume(block), 512 << 10).expect("they fit");
            assert_eq!(Parameters::from_bytes(&of_volume.to_bytes()), Some(of_volume));
            assert_eq!(of_volume.logical_bytes, block);
        }
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_block_is_rounded_down() {
        assert_eq!(Parameters::of(&volume(4096), 4096).expect("they fit").sectors, 8192);
    }

    #[test]
    fn blocks_larger_than_a_page_are_refused() {
        let why = Parameters::of(&volume(8192), 1 << 20).expect_err("too large");
        assert!(why.contains("8192"), "{why}");
    }
}
