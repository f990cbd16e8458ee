"""Converts a torch.export program to LiteRT. Runs in a Python with `litert-torch`, which need not have our code.

python litert_script.py PROGRAM.pt2 ROWS.npy TARGET.tflite OUTPUTS.npy

Afterwards TARGET runs one row at a time, and OUTPUTS has its outputs for the rows in ROWS.
"""

import sys

import numpy as np


def main(program: str, rows: str, target: str, outputs: str) -> None:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    x = np.load(rows)
    network = torch.export.load(program).module(check_guards=False)
    litert_torch.convert(network, (torch.from_numpy(x[:1]),)).export(target)
    interpreter = Interpreter(model_path=target, num_threads=1)
    interpreter.allocate_tensors()
    details = (interpreter.get_input_details(), interpreter.get_output_details())
    input_index, output_index = (tensors[0]["index"] for tensors in details)
    outputs_of_rows = []
    for row in range(len(x)):
        interpreter.set_tensor(input_index, x[row : row + 1])
        interpreter.invoke()
        outputs_of_rows.append(interpreter.get_tensor(output_index))
    np.save(outputs, np.concatenate(outputs_of_rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
