//! The one CRC of the format, in its three parametrisations (docs/reference/format.md §1.4):
//! polynomial `0x42F0E1EBA9EA3693`, 64 bits wide, most significant bit first.

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The checksum of superblocks, journal entries, prio sets and bsets of version 0: CRC-64/WE.
pub fn crc64_we(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64We, bytes)
}

/// The checksum of bsets of version 1: CRC-64/WE whose register starts with `init` instead of all
/// ones.
pub fn crc64_we_seeded(init: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64We, init);
    digest.update(bytes);
    digest.finalize()
}

/// The checksum of cached data, whose top bit is cleared before use: CRC-64/ECMA-182. Nothing
/// stores or verifies it (docs/reference/format.md §4.6).
pub fn crc64_ecma(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Ecma182, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The test vectors of docs/reference/format.md §1.4 that are not whole structures.
    #[test]
    fn crc64_matches_test_vectors() {
        let counting: Vec<u8> = (0..=255).collect();
        assert_eq!(crc64_we(b""), 0);
        assert_eq!(crc64_we(b"123456789"), 0x62ec_59e3_f1a4_f00a);
        assert_eq!(crc64_we(&[0; 8]), 0x0353_4142_a6ce_566d);
        assert_eq!(crc64_we(&[0xff; 8]), 0xffff_ffff_ffff_ffff);
        assert_eq!(crc64_we(&counting), 0x59c3_325b_2927_a19a);
        assert_eq!(crc64_we_seeded(0x0008_0000_0010_0001, b"123456789"), 0x8eb2_7cb6_7943_52b3);
        assert_eq!(crc64_ecma(b"123456789"), 0x6c40_df5f_0b49_7347);
    }

    proptest! {
        /// The fast implementation agrees with a plain one, for every seed, length and alignment.
        #[test]
        fn crc64_agrees_with_another_implementation(
            seed: u64,
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            skip in 0_usize..16,
        ) {
            let bytes = bytes.get(skip..).unwrap_or_default();
            let plain = crc::Crc::<u64>::new(&crc::CRC_64_WE);
            prop_assert_eq!(crc64_we(bytes), plain.checksum(bytes));
            let mut digest = plain.digest_with_initial(seed);
            digest.update(bytes);
            prop_assert_eq!(crc64_we_seeded(seed, bytes), digest.finalize());
            let ecma = crc::Crc::<u64>::new(&crc::CRC_64_ECMA_182);
            prop_assert_eq!(crc64_ecma(bytes), ecma.checksum(bytes));
        }
    }
}
