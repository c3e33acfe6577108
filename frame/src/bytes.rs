/// Something that bytes can be read from, a few at a time.
pub trait Bytes {
    /// The `N` bytes from `at` on; `None` where not all of them are there.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// Bytes in all.
    fn length(&self) -> usize;

    /// The control information of an outermost VLAN tag that is not among the bytes any more: Linux takes it out of a
    /// packet and keeps it beside.
    fn stripped_tag(&self) -> Option<u16> {
        None
    }
}

impl Bytes for [u8] {
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }

    fn length(&self) -> usize {
        self.len()
    }
}
