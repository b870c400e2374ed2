//! `ubcache-simulate`: runs plans against the engine, or against toys, and says what broke.
fn main() {}
