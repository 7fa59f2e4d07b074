// The frozen layout of physmem.h: a change that an embedder's binary would notice does not compile.
#include "physmem.h"

#
#include <sys/mman.h>

#define PM_SAME(what, number) _Static_assert((what) == (number), #what " is part of the ABI")

// The initialisers compile, and belong to their structs.
PM_SAME(sizeof((pm_options)PM_OPTIONS_INIT), 48);
PM_SAME(sizeof((pm_machine_info)PM_MACHINE_INFO_INIT), 56);
PM_SAME(sizeof((pm_region)PM_REGION_INIT), 64);
PM_SAME(sizeof((pm_mmio_ops)PM_MMIO_OPS_INIT), 32);
PM_SAME(sizeof((pm_merge_result)PM_MERGE_RESULT_INIT), 40);
PM_SAME(sizeof((pm_ref_table_info)PM_REF_TABLE_INFO_INIT), 32);

PM_SAME(offsetof(pm_options, backing), 4);
PM_SAME(offsetof(pm_options, memory), 8);
PM_SAME(offsetof(pm_options, huge_page_size), 16);
PM_SAME(offsetof(pm_options, numa_node), 24);
PM_SAME(offsetof(pm_options, cpus), 28);
PM_SAME(offsetof(pm_options, flags), 32);
PM_SAME(offsetof(pm_options, kvm_model), 36);
PM_SAME(offsetof(pm_options, free_pages_model), 40);
PM_SAME(offsetof(pm_options, refcount_layout), 44);

PM_SAME(offsetof(pm_machine_info, cpus), 4);
PM_SAME(offsetof(pm_machine_info, nodes), 8);
PM_SAME(offsetof(pm_machine_info, regions), 12);
PM_SAME(offsetof(pm_machine_info, memory), 16);
PM_SAME(offsetof(pm_machine_info, frame_count), 24);
PM_SAME(offsetof(pm_machine_info, ballooned), 32);
PM_SAME(offsetof(pm_machine_info, resident), 40);
PM_SAME(offsetof(pm_machine_info, finding_count), 48);

PM_SAME(offsetof(pm_region, kind), 4);
PM_SAME(offsetof(pm_region, gpa), 8);
PM_SAME(offsetof(pm_region, len), 16);
PM_SAME(offsetof(pm_region, fd), 24);
PM_SAME(offsetof(pm_region, numa_node), 28);
PM_SAME(offsetof(pm_region, fd_offset), 32);
PM_SAME(offsetof(pm_region, page_size), 40);
PM_SAME(offsetof(pm_region, prot), 48);
PM_SAME(offsetof(pm_region, backing), 52);
PM_SAME(offsetof(pm_region, hva), 56);

PM_SAME(offsetof(pm_mmio_ops, read), 8);
PM_SAME(offsetof(pm_mmio_ops, write), 16);
PM_SAME(offsetof(pm_mmio_ops, release), 24);

PM_SAME(offsetof(pm_merge_result, scanned), 8);
PM_SAME(offsetof(pm_merge_result, zero), 16);
PM_SAME(offsetof(pm_merge_result, merged), 24);
PM_SAME(offsetof(pm_merge_result, freed), 32);

PM_SAME(offsetof(pm_ref_table_info, stride), 4);
PM_SAME(offsetof(pm_ref_table_info, base), 8);
PM_SAME(offsetof(pm_ref_table_info, first_pfn), 16);
PM_SAME(offsetof(pm_ref_table_info, count), 24);

PM_SAME(PM_ABI_VERSION, 1);
PM_SAME(PM_BACKING_MEMFD, 0);
PM_SAME(PM_BACKING_HUGETLB, 1);
PM_SAME(PM_BACKING_ANONYMOUS, 2);
PM_SAME(PM_BACKING_ANONYMOUS_THP, 3);
PM_SAME(PM_KVM_MODEL_A0, 1);
PM_SAME(PM_KVM_MODEL_C, 4);
PM_SAME(PM_FREE_PAGES_BEFORE_TAIL_FIX, 1);
PM_SAME(PM_FREE_PAGES_HEAD_READ_BEFORE_PUT, 3);
PM_SAME(PM_REFCOUNT_LAYOUT_STRIDED, 1);
PM_SAME(PM_OPEN_RESERVE, 1);
PM_SAME(PM_OPEN_PC_LAYOUT, 2);
PM_SAME(PM_REGION_RAM, 0);
PM_SAME(PM_REGION_ROM, 1);
PM_SAME(PM_REGION_MMIO, 2);
PM_SAME(PM_REGION_PMEM, 3);
PM_SAME((int)PM_PROT_READ, PROT_READ);
PM_SAME((int)PM_PROT_WRITE, PROT_WRITE);
PM_SAME((int)PM_PROT_EXEC, PROT_EXEC);
PM_SAME(PM_KVM_LOG_DIRTY_PAGES, 1);
PM_SAME(PM_VHOST_USER_REPLY_ACK, 1);
PM_SAME(PM_VHOST_USER_CONFIGURE_MEM_SLOTS, 2);
