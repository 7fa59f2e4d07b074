import CPhysmemABI
import Testing

/// What Swift imports of physmem.h is what the header's own assertions, and an embedder's binary, have.
@Suite("C interface: layout")
struct LayoutTests {
  @Test("Sizes of structs")
  func sizes() {
    #expect(MemoryLayout<pm_options>.size == 48)
    #expect(MemoryLayout<pm_machine_info>.size == 56)
    #expect(MemoryLayout<pm_region>.size == 64)
    #expect(MemoryLayout<pm_mmio_ops>.size == 32)
    #expect(MemoryLayout<pm_merge_result>.size == 40)
    #expect(MemoryLayout<pm_ref_table_info>.size == 32)
  }

  @Test("Offsets of fields")
  func offsets() {
    typealias Layout = MemoryLayout
    #expect(
      [
        Layout<pm_options>.offset(of: \.size), Layout<pm_options>.offset(of: \.backing),
        Layout<pm_options>.offset(of: \.memory), Layout<pm_options>.offset(of: \.huge_page_size),
        Layout<pm_options>.offset(of: \.numa_node), Layout<pm_options>.offset(of: \.cpus),
        Layout<pm_options>.offset(of: \.flags), Layout<pm_options>.offset(of: \.kvm_model),
        Layout<pm_options>.offset(of: \.free_pages_model),
        Layout<pm_options>.offset(of: \.refcount_layout),
      ] == [0, 4, 8, 16, 24, 28, 32, 36, 40, 44])
    #expect(
      [
        Layout<pm_region>.offset(of: \.size), Layout<pm_region>.offset(of: \.kind),
        Layout<pm_region>.offset(of: \.gpa), Layout<pm_region>.offset(of: \.len),
        Layout<pm_region>.offset(of: \.fd), Layout<pm_region>.offset(of: \.numa_node),
        Layout<pm_region>.offset(of: \.fd_offset), Layout<pm_region>.offset(of: \.page_size),
        Layout<pm_region>.offset(of: \.prot), Layout<pm_region>.offset(of: \.backing),
        Layout<pm_region>.offset(of: \.hva),
      ] == [0, 4, 8, 16, 24, 28, 32, 40, 48, 52, 56])
    #expect(
      [
        Layout<pm_machine_info>.offset(of: \.cpus), Layout<pm_machine_info>.offset(of: \.nodes),
        Layout<pm_machine_info>.offset(of: \.regions),
        Layout<pm_machine_info>.offset(of: \.memory),
        Layout<pm_machine_info>.offset(of: \.frame_count),
        Layout<pm_machine_info>.offset(of: \.ballooned),
        Layout<pm_machine_info>.offset(of: \.resident),
        Layout<pm_machine_info>.offset(of: \.finding_count),
      ] == [4, 8, 12, 16, 24, 32, 40, 48])
    #expect(
      [
        Layout<pm_mmio_ops>.offset(of: \.read), Layout<pm_mmio_ops>.offset(of: \.write),
        Layout<pm_mmio_ops>.offset(of: \.release), Layout<pm_merge_result>.offset(of: \.scanned),
        Layout<pm_merge_result>.offset(of: \.zero), Layout<pm_merge_result>.offset(of: \.merged),
        Layout<pm_merge_result>.offset(of: \.freed), Layout<pm_ref_table_info>.offset(of: \.stride),
        Layout<pm_ref_table_info>.offset(of: \.base),
        Layout<pm_ref_table_info>.offset(of: \.first_pfn),
        Layout<pm_ref_table_info>.offset(of: \.count),
      ] == [8, 16, 24, 8, 16, 24, 32, 4, 8, 16, 24])
  }

  @Test("Numbers of enumerators")
  func numbers() {
    #expect(PM_ABI_VERSION == 1)
    #expect(pm_abi_version() == 1)
    #expect(
      [
        PM_BACKING_MEMFD, PM_BACKING_HUGETLB, PM_BACKING_ANONYMOUS, PM_BACKING_ANONYMOUS_THP,
      ].map(\.rawValue) == [0, 1, 2, 3])
    #expect(
      [
        PM_KVM_MODEL_DEFAULT, PM_KVM_MODEL_A0, PM_KVM_MODEL_A, PM_KVM_MODEL_B, PM_KVM_MODEL_C,
      ].map(\.rawValue) == [0, 1, 2, 3, 4])
    #expect(
      [
        PM_FREE_PAGES_DEFAULT, PM_FREE_PAGES_BEFORE_TAIL_FIX, PM_FREE_PAGES_HEAD_READ_AFTER_PUT,
        PM_FREE_PAGES_HEAD_READ_BEFORE_PUT,
      ].map(\.rawValue) == [0, 1, 2, 3])
    #expect(
      [PM_REFCOUNT_LAYOUT_PACKED, PM_REFCOUNT_LAYOUT_STRIDED].map(\.rawValue) == [0, 1])
    #expect([PM_OPEN_RESERVE, PM_OPEN_PC_LAYOUT].map(\.rawValue) == [1, 2])
    #expect(
      [PM_REGION_RAM, PM_REGION_ROM, PM_REGION_MMIO, PM_REGION_PMEM].map(\.rawValue)
        == [0, 1, 2, 3])
    #expect([PM_PROT_READ, PM_PROT_WRITE, PM_PROT_EXEC].map(\.rawValue) == [1, 2, 4])
    #expect(PM_KVM_LOG_DIRTY_PAGES.rawValue == 1)
    #expect(
      [PM_VHOST_USER_REPLY_ACK, PM_VHOST_USER_CONFIGURE_MEM_SLOTS].map(\.rawValue) == [1, 2])
  }
}
