/// The machine that the process runs on: what it has and what it allows.
///
/// Every question reads the present state; nothing is kept. All functions may be called from any
/// thread.
public enum Host {}
