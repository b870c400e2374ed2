//! A volume written and read in pieces, each a request.

use ubcache_cli::nbd_client::Client;

/// Bytes of a piece.
pub const PIECE: usize = 64 << 10;

/// Writes the data from the beginning of the volume on, and flushes.
pub fn write_pieces(client: &mut Client, data: &[u8]) {
    for (piece, at) in data.chunks(PIECE).zip((0..).step_by(PIECE)) {
        client.write(at, piece, false).unwrap_or_else(|error| panic!("a write at {at}: {error}"));
    }
    client.flush().expect("a flush");
}

/// Reads the volume from its beginning on; it has to have this data.
pub fn read_pieces(client: &mut Client, data: &[u8]) {
    let mut found = vec![0; PIECE];
    for (piece, at) in data.chunks(PIECE).zip((0..).step_by(PIECE)) {
        let found = &mut found[..piece.len()];
        client.read(at, found).unwrap_or_else(|error| panic!("a read at {at}: {error}"));
        assert!(found == piece, "wrong data at byte {at}");
    }
}
