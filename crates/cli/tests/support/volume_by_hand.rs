//! Volumes on an object store, read as docs/internals/objects.md describes them.

use super::moto::Moto;

/// The content of a volume by what is documented about it, without the code that wrote it.
pub fn volume_by_hand(moto: &Moto, prefix: &str) -> Vec<u8> {
    let json = |key: &str| -> serde_json::Value {
        serde_json::from_slice(&moto.get(&format!("{prefix}/{key}"))).expect("JSON")
    };
    let name = |number: usize, name: &serde_json::Value| {
        let (epoch, serial) = (name.get(0)?.as_u64()?, name.get(1)?.as_u64()?);
        Some(format!("{number:08x}-{epoch:x}-{serial:x}"))
    };
    let root = json("root");
    let number = |key: &str| root[key].as_u64().expect("a number") as usize;
    let (size, object) = (number("size_bytes"), number("object_bytes"));
    let mut content = vec![0; size];
    for (number, page) in root["pages"].as_array().expect("pages").iter().enumerate() {
        let Some(page) = name(number, page) else { continue };
        let page = json(&format!("pages/{page}"));
        for (slot, version) in page["objects"].as_array().expect("names").iter().enumerate() {
            let Some(name) = name(number * 1024 + slot, version) else { continue };
            let bytes = moto.get(&format!("{prefix}/data/{name}"));
            let at = (number * 1024 + slot) * object;
            content[at..size.min(at + object)].copy_from_slice(&bytes[..object.min(size - at)]);
        }
    }
    content
}
