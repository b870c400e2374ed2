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

/// A turn of a client that writes a piece, of the turn's number, and compares what it reads then.
/// It flushes in every eighth turn.
pub fn write_and_compare(client: &mut Client, turn: u8, at: u64) {
    client.write(at, &[turn; PIECE], turn.is_multiple_of(4)).expect("a write");
    let mut found = [0; PIECE];
    client.read(at, &mut found).expect("a read");
    assert!(found == [turn; PIECE], "turn {turn}");
    if turn.is_multiple_of(8) {
        client.flush().expect("a flush");
    }
}
