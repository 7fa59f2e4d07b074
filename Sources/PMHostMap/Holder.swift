public import PMUnits

/// Who took a reference, as the ledger remembers it and as findings print it.
public enum Holder: Hashable, Sendable {
  /// Whoever allocated the page.
  case owner(String)
  /// An entry of a host page table: process and user address.
  case mapping(process: Int, address: UInt64)
  /// The page cache of a file.
  case pageCache(file: Int)
  /// The pool of free huge pages.
  case hugetlb
  /// A per-CPU batch of the LRU lists.
  case lruBatch(cpu: Int)
  /// A lookup of user pages that nobody else named.
  case userPages(process: Int, address: UInt64)
  /// A long-term pin, as VFIO or vDPA takes it.
  case pin(String)
  /// A guest fault, from lookup to release.
  case guestFault(vm: Int, gfn: GFN)
  /// A gfn_to_pfn_cache while it refreshes.
  case pfnCache(vm: Int, gfn: GFN)
  /// `kvm_vcpu_map`, until it is unmapped.
  case vcpuMap(vm: Int, gfn: GFN)
}

extension Holder: CustomStringConvertible {
  /// A phrase for people, as `KVM guest fault (vm 1, gfn 40000)`.
  public var description: String {
    switch self {
    case .owner(let name): name
    case .mapping(let process, let address):
      "host entry (process \(process), 0x\(String(address, radix: 16)))"
    case .pageCache(let file): "page cache of file \(file)"
    case .hugetlb: "hugetlb"
    case .lruBatch(let cpu): "LRU batch of CPU \(cpu)"
    case .userPages(let process, let address):
      "get_user_pages (process \(process), 0x\(String(address, radix: 16)))"
    case .pin(let name): "pin by \(name)"
    case .guestFault(let vm, let gfn): "KVM guest fault (vm \(vm), gfn \(gfn))"
    case .pfnCache(let vm, let gfn): "gfn_to_pfn_cache (vm \(vm), gfn \(gfn))"
    case .vcpuMap(let vm, let gfn): "kvm_vcpu_map (vm \(vm), gfn \(gfn))"
    }
  }
}
