"""Trains and exports three Keras networks on encoded rows. Run by an interpreter that has TensorFlow.

    python keras_networks.py rows.npz FOLDER [EPOCHS]

`rows.npz` holds x_train float32 (N, 1, H, W) and y_train (N,). Afterwards FOLDER holds an ONNX file for each network.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers


class Positions(layers.Layer):
    """Adds a learned vector for each step."""

    def build(self, shape):
        self.of_step = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.of_step


def cnn(height, width, num_classes):
    """Channels last, and a softmax at the end."""
    x = image = keras.Input((height, width, 1))
    for channels in (16, 32):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(layers.BatchNormalization()(x))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(num_classes, activation="softmax")(x))


def rnn(height, width, num_classes):
    """An LSTM over the rows of the image, with a softmax at the end."""
    image = keras.Input((height, width))
    return keras.Model(image, layers.Dense(num_classes, activation="softmax")(layers.LSTM(64)(image)))


def transformer(height, width, num_classes):
    """Two layers over the rows of the image, with Keras's exact GELU, and logits at the end."""
    image = keras.Input((height, width))
    x = Positions()(layers.Dense(32)(image))
    for _ in range(2):
        normed = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(num_heads=4, key_dim=8)(normed, normed)
        x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(image, layers.Dense(num_classes)(layers.Flatten()(layers.LayerNormalization()(x))))


def main(rows, folder, epochs):
    data = np.load(rows)
    x, y = data["x_train"], data["y_train"]
    _, _, height, width = x.shape
    for make in (cnn, rnn, transformer):
        keras.utils.set_random_seed(0)
        network = make(height, width, int(y.max()) + 1)
        is_logits = make is transformer
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=is_logits)
        network.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
        inputs = x.transpose(0, 2, 3, 1) if make is cnn else x[:, 0]
        network.fit(inputs, y, batch_size=32, epochs=epochs, verbose=0)
        network.export(str(folder / f"{make.__name__}.onnx"), format="onnx", verbose=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 10)
