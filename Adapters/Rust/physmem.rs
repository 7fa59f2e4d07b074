//! libphysmem from Rust without cargo: the C functions, a safe type over them, and what it is for.
//! rustc --edition 2021 physmem.rs $(pkg-config --libs physmem)
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};

#[allow(non_camel_case_types)]
mod sys {
    use super::*;
    pub enum pm_machine {} // Opaque.
    extern "C" {
        pub fn pm_abi_version() -> u32;
        pub fn pm_last_error() -> *const c_char;
        pub fn pm_open(memory: u64, machine: *mut *mut pm_machine) -> c_int;
        pub fn pm_close(machine: *mut pm_machine) -> c_int;
        pub fn pm_read(machine: *mut pm_machine, gpa: u64, data: *mut c_void, len: usize) -> c_int;
        pub fn pm_write(machine: *mut pm_machine, gpa: u64, data: *const c_void, len: usize) -> c_int;
        pub fn pm_atomic_cas(m: *mut pm_machine, gpa: u64, width: u32, expected: *mut u64, desired: u64) -> c_int;
    }
}
/// A negative errno and the library's sentence.
#[derive(Debug)]
struct Error(c_int, String);
fn check(result: c_int) -> Result<c_int, Error> {
    let text = || unsafe { CStr::from_ptr(sys::pm_last_error()) }.to_string_lossy().into_owned();
    if result < 0 { Err(Error(-result, text())) } else { Ok(result) }
}
struct Machine(*mut sys::pm_machine);
unsafe impl Send for Machine {} // Every function may be called from any thread at any time.
unsafe impl Sync for Machine {}
impl Machine {
    fn open(memory: u64) -> Result<Self, Error> {
        assert_eq!(unsafe { sys::pm_abi_version() }, 1);
        let mut machine = std::ptr::null_mut();
        check(unsafe { sys::pm_open(memory, &mut machine) }).map(|_| Machine(machine))
    }
    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), Error> {
        check(unsafe { sys::pm_read(self.0, gpa, data.as_mut_ptr().cast(), data.len()) }).map(drop)
    }
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        check(unsafe { sys::pm_write(self.0, gpa, data.as_ptr().cast(), data.len()) }).map(drop)
    }
    /// Whether `old` was there, and is `new` now.
    fn exchange(&self, gpa: u64, mut old: u64, new: u64) -> Result<bool, Error> {
        check(unsafe { sys::pm_atomic_cas(self.0, gpa, 8, &mut old, new) }).map(|exchanged| exchanged == 1)
    }
}
impl Drop for Machine {
    fn drop(&mut self) { assert_eq!(unsafe { sys::pm_close(self.0) }, 0); }
}
fn main() -> Result<(), Error> {
    let (machine, mut bytes) = (Machine::open(64 << 20)?, [0; 8]);
    let count = || (0..10_000).filter(|&i| machine.exchange(0x2000, i, i + 1).unwrap()).count();
    let total: usize = std::thread::scope(|s| [s.spawn(count), s.spawn(count)].map(|t| t.join().unwrap()).iter().sum());
    machine.read(0x2000, &mut bytes)?;
    assert_eq!((total, u64::from_ne_bytes(bytes)), (10_000, 10_000));
    machine.write(0x3ffc, &bytes)?; // Over a border of pages.
    let Error(errno, text) = machine.read((64 << 20) - 4, &mut bytes).unwrap_err();
    assert!(errno == 14 && !text.is_empty());
    Ok(println!("two threads exchanged {total} times; past the end: errno {errno}, {text}"))
}
