//! The NBD codec: bytes in pieces for the decoders of a server and of a client. The first byte
//! determines the length of the pieces.

use ubcache_nbd::proto::{ClientDecoder, ClientOption, ServerDecoder, ServerEvent};

/// See the module.
pub fn nbd(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let (mut server, mut client) = (ServerDecoder::new(), ClientDecoder::new());
    for chunk in bytes.chunks(usize::from(choice).max(1)) {
        let mut input = chunk;
        while let Ok(Some(event)) = server.next(&mut input) {
            let begins = matches!(&event, ServerEvent::Option(option)
                if matches!(option.body, Ok(ClientOption::Go(_) | ClientOption::ExportName(_))));
            if begins {
                server.start_transmission();
            }
        }
        let mut input = chunk;
        while let Ok(Some(_)) = client.next(&mut input, |cookie| Some(cookie as u32 % 4096)) {}
    }
}
