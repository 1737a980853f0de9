"""What a stage costs on a GPU, against the limits of an H200: for gpu.py and gpu_tokens.py."""

from dataclasses import dataclass

# An H200 by what was measured on one (copy, bf16 product; int8 taken as twice that) and by its data
# sheet (132 multiprocessors of 128 lanes at 1.75 GHz).
MULTIPROCESSORS = 132
H200_BANDWIDTH, H200_INT8 = 4.3e12, 2 * 790e12
H200_INSTRUCTIONS = MULTIPROCESSORS * 128 * 1.75e9
KERNEL_FLOOR = 2.5e-6  # seconds between the kernels of a graph, if a kernel has nothing to do
# Instructions of a thread for each number of a row, or for each score: counted in the machine code
# that Triton 3.6 makes of the kernels for sm_90 (nvdisasm), for the shape of 2.6 M, steps.
INSTRUCTIONS = {
    "embed": 78, "split_heads": 53, "attention": 60, "quantize_average": 21, "add_product": 44,
    "activate": 28, "head": 16, "advance": 1,
    # By Triton 3.9, for SmolLM2-135M's shape; of passes over the vocabulary, the mean.
    "token embed": 87, "token split_heads": 76, "token attention, step": 118,
    "token attention, block": 144, "normalize": 70, "quantize": 29,
    # The same, of passes over the vocabulary the mean; every block of it holding likely tokens.
    "survey": 20, "targets": 14, "search": 27,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one stage: bytes that pass through device memory if no cache holds them, operations of
    int8 products (two for a multiplication and addition), instructions of threads."""

    bytes: float
    operations: float = 0
    instructions: float = 0

    def seconds(self, share: float = 1.0) -> float:
        """If the nearest limit of an H200 is reached to this share."""
        limits = (
            self.bytes / H200_BANDWIDTH,
            self.operations / H200_INT8,
            self.instructions / H200_INSTRUCTIONS,
        )
        return max(KERNEL_FLOOR, max(limits) / share)


def row_cost(stage: str, rows: int, read: int, written: int, numbers: int) -> tuple[str, Cost]:
    instructions = rows * numbers * INSTRUCTIONS[stage]
    return stage, Cost(rows * (read + written), instructions=instructions)
