//! Random bytes of the operating system (getrandom(2)), for keys and seeds.

use std::io;

use zeroize::Zeroizing;

/// # Errors
/// Where the kernel gives none.
pub fn bytes<const N: usize>() -> io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(io::Error::from)?;
    Ok(bytes)
}
