//! The NBD codec: what a server and what a client hears, in pieces. The first byte says how long they are.

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
