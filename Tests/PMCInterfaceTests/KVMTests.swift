import CPhysmemABI
import CPhysmemShim
import Foundation
import Testing

/// Memslots of a real virtual machine.
@Suite("C interface: KVM", .enabled(if: access("/dev/kvm", R_OK | W_OK) == 0, "no /dev/kvm here"))
struct KVMTests {
  @Test("Slots are made, logged, and deleted; a refused call leaves none")
  func slots() throws {
    var kvm: Int32 = -1
    var vm: Int32 = -1
    try #require(pm_kvm_open(&kvm) == 0)
    defer { _ = pm_host_close(kvm) }
    try #require(pm_kvm_create_vm(kvm, &vm) == 0)
    defer { _ = pm_host_close(vm) }
    var machine: OpaquePointer?
    try #require(pm_open(16 << 20, &machine) == 0)
    defer { _ = pm_close(machine) }
    var region = pm_region()
    region.size = UInt32(MemoryLayout<pm_region>.size)
    region.kind = PM_REGION_ROM.rawValue
    region.gpa = 1 << 32
    region.len = 65536
    region.fd = -1
    region.numa_node = -1
    region.page_size = 4096
    #expect(pm_region_add(machine, &region) == 0)

    let logged = UInt32(PM_KVM_LOG_DIRTY_PAGES.rawValue)
    #expect(pm_map_kvm(machine, vm, 4, logged) == 2)
    // The same memory in other slots overlaps; nothing of the second call is left, all of the first is.
    #expect(pm_map_kvm(machine, vm, 10, 0) == -EEXIST)
    #expect(String(cString: pm_last_error()).contains("slot 10"))
    #expect(pm_unmap_kvm(machine, vm, 10) == -ENOENT)
    #expect(pm_collect_kvm(machine, vm, 4) == -ENODATA)
    #expect(pm_dirty_enable(machine) == 0)
    #expect(pm_collect_kvm(machine, vm, 4) == 0)
    #expect(pm_unmap_kvm(machine, vm, 4) == 0)
    #expect(pm_unmap_kvm(machine, vm, 4) == -ENOENT)
    #expect(pm_map_kvm(machine, vm, 10, 0) == 2)
    #expect(pm_collect_kvm(machine, vm, 10) == -ENODATA)
    #expect(pm_unmap_kvm(machine, vm, 10) == 0)
    #expect(pm_map_kvm(machine, kvm, 0, 0) < 0)
    #expect(pm_map_kvm(machine, vm, .max, 0) == -EINVAL)
    #expect(pm_map_kvm(machine, vm, 0, 6) == -EINVAL)
  }
}
