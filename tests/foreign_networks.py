"""Networks by others, or as others write them, and their scaling symmetries written down by hand.

Every expectation was derived from the architecture alone, before any detector had seen the network. Patterns are
regular expressions that match whole names of parameters; a joint group is written as one set of patterns.

The rules they follow from:

- a weight that only a batch, instance or spectral normalization reads is scale-invariant on its own, and a bias
  between the two is dead;
- with a layer or group normalization a bias is not dead: weight and bias are invariant together;
- ReLU, pooling and bias-free linear maps pass a scale on; GELU, hard swish, softmax and sigmoid do not;
- all that write into a residual stream which only normalizations read are invariant together;
- a scale that one tensor takes up and another gives back is a rescaling, and no group.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from periodic_lib.engine.sources import import_torchvision


@dataclass(frozen=True)
class Foreign:
    """A network, what it is applied to, and what must be found in it.

    `single`: patterns of tensors that are invariant each on its own; `joint`: sets of patterns, a group each (with
    `{}` for every value of `each`); `rescalings`: how many independent ones there are.
    """

    make: Callable[[], tuple[nn.Module, object]]
    single: str = ""
    joint: tuple[str, ...] = ()
    dead: str = ""
    rescalings: int = 0
    needs: str = ""

    def groups(self, names: list[str]) -> set[frozenset[str]]:
        """Return the groups expected among parameters of these names."""
        return {frozenset([name]) for name in matching(self.single, names)} | {
            frozenset(matching(pattern, names)) for pattern in self.joint
        }


def matching(pattern: str, names: list[str]) -> list[str]:
    """Return the names that the pattern matches as a whole.

    >>> matching(r"a[.].*", ["a.weight", "ba.weight"])
    ['a.weight']
    """
    return [name for name in names if pattern and re.fullmatch(pattern, name)]


# ---------------------------------------------------------------- networks as users write them


class Attention(nn.Module):
    """Causal self-attention with separate matrices, with or without normalized queries and keys."""

    def __init__(self, width: int, heads: int, qk_norm: bool, bias: bool):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))
        size = width // heads
        self.q_norm, self.k_norm = (nn.RMSNorm(size, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A transformer block; `post`: the normalization comes after the addition."""

    def __init__(self, width: int, heads: int, qk_norm: bool, bias: bool, post: bool, norm, activation):
        super().__init__()
        self.attn, self.post, self.activation = Attention(width, heads, qk_norm, bias), post, activation
        self.ln1, self.ln2 = norm(width), norm(width)
        self.fc, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(3 * width, width, bias=bias)
        self.drop = nn.Dropout(0.1)

    def mlp(self, x):
        return self.drop(self.proj(self.activation(self.fc(x))))

    def forward(self, x):
        if self.post:
            x = self.ln1(x + self.attn(x))
            return self.ln2(x + self.mlp(x))
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class HardCodedRMSNorm(nn.Module):
    """A normalization whose epsilon is no attribute."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class GPT(nn.Module):
    """A small language model."""

    def __init__(
        self, tied=False, qk_norm=False, post=False, bias=True, norm=nn.LayerNorm, activation=functional.gelu
    ):
        super().__init__()
        width, words, length = 16, 19, 12
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 2, qk_norm, bias, post, norm, activation) for _ in range(2))
        self.ln_f, self.head = norm(width), nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def tokens(words=19, batch=4, length=12):
    """Return token numbers."""
    return torch.arange(batch * length).mul(7).remainder(words).view(batch, length)


def images(batch=8, channels=3, side=32):
    """Return images of noise."""
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(3))


def vectors(*shape):
    """Return vectors of noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


class LastState(nn.Module):
    """A recurrent network and a read-out of its last state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, num_layers=2, batch_first=True), nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """PyTorch's own encoder, which normalizes after the addition and has ReLU, and a linear head."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 7)

    def forward(self, x):
        return self.head(self.encoder(x))


def pooled_head(channels: int, classes: int = 10) -> list[nn.Module]:
    """Return the end of a small convolutional network."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def group_norms():
    """Return convolutions with biases, normalized in groups of channels."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(), *pooled_head(12)]
    return nn.Sequential(*layers), images(side=8)


def instance_norms():
    """Return convolutions with biases, normalized image by image, without scale and shift."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, padding=1), nn.InstanceNorm2d(12), nn.ReLU(), *pooled_head(12)]
    return nn.Sequential(*layers), images(side=8)


def biased_perceptron():
    """Return linear layers that have a bias although a batch normalization follows."""
    layers = [nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 5)), vectors(24, 9)


def weight_norms():
    """Return linear layers with a separate length and direction."""
    from torch.nn.utils.parametrizations import weight_norm

    layers = [weight_norm(nn.Linear(9, 16)), nn.ReLU(), weight_norm(nn.Linear(16, 5))]
    return nn.Sequential(*layers), vectors(24, 9)


def spectral_norms():
    """Return a linear layer divided by its largest singular value, and a plain one."""
    from torch.nn.utils.parametrizations import spectral_norm

    return nn.Sequential(spectral_norm(nn.Linear(9, 16)), nn.ReLU(), nn.Linear(16, 5)), vectors(24, 9)


def perceptron():
    """Return a perceptron without normalization and without ReLU."""
    return nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 5)), vectors(24, 9)


def relu_perceptron():
    """Return a perceptron without normalization, with ReLU."""
    layers = [nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)]
    return nn.Sequential(*layers), vectors(24, 9)


# ---------------------------------------------------------------- networks of libraries


def torchvision_models():
    """Return torchvision's module of networks."""
    import importlib

    import_torchvision()
    return importlib.import_module("torchvision.models")


def torchvision_resnet18():
    """Return ResNet-18."""
    return torchvision_models().resnet18(num_classes=10), images(side=16)


def vgg11_bn():
    """Return the convolutions of VGG-11 at an eighth of their width, and a classifier of three layers."""
    models = torchvision_models()
    plan = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    model = models.vgg.VGG(models.vgg.make_layers(plan, batch_norm=True), num_classes=10)
    model.avgpool = nn.Identity()
    linear = [
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, 10),
    ]
    model.classifier = nn.Sequential(*linear)
    return model, images()


def densenet():
    """Return a small DenseNet."""
    models = torchvision_models()
    sizes = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "bn_size": 2, "num_classes": 10}
    return models.DenseNet(**sizes), images()


def mobilenet():
    """Return MobileNetV3 (small) at a quarter of its width.

    Widths are rounded to eights: 40 and 48 channels both become 16, so one stream is what two are in full.
    """
    v3 = torchvision_models().mobilenetv3
    settings, last = v3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.25)
    return v3.MobileNetV3(settings, last, num_classes=10), images(batch=4, side=64)


def shufflenet():
    """Return ShuffleNetV2 with two blocks a stage."""
    channels = [8, 16, 24, 32, 40]
    model = torchvision_models().ShuffleNetV2([2, 2, 2], channels, num_classes=10)
    return model, images(batch=4, side=64)


def vit_tiny():
    """Return timm's vision transformer with two blocks."""
    torchvision_models()
    import timm

    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.models.VisionTransformer(**sizes), images(side=16)


def timm_resnet18():
    """Return timm's ResNet-18 with narrow late stages."""
    torchvision_models()
    import timm

    resnet = timm.models.resnet
    sizes = {"channels": (64, 16, 16, 16), "num_classes": 10}
    return resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], **sizes), images(side=16)


NO_ENDS = {"bos_token_id": None, "eos_token_id": None}


def transformers_library():
    """Return the library of that name, which imports torchvision, and thus needs what that needs."""
    import importlib

    torchvision_models()
    return importlib.import_module("transformers")


def gpt2():
    """Return GPT-2 with tied embeddings, in small, and its inputs by name."""
    transformers = transformers_library()
    config = transformers.GPT2Config(vocab_size=19, n_positions=12, n_embd=16, n_layer=2, n_head=2, **NO_ENDS)
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens()}


def llama():
    """Return Llama with an untied head, in small."""
    transformers = transformers_library()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 19}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = transformers.LlamaConfig(**sizes, **heads, max_position_embeddings=12, **NO_ENDS)
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens()}


def bert():
    """Return BERT for classification, in small."""
    transformers = transformers_library()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 19}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=12, num_labels=7)
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens(batch=16)}


# ---------------------------------------------------------------- what must be found

RESNET = {  # each block's first scale and shift; the streams of three stages, which convolutions with BN read
    "joint": (
        *(rf"layer{stage}\.{block}\.bn1\..*" for stage in range(1, 5) for block in range(2)),
        r"bn1\..*|layer1\.[01]\.bn2\..*",
        *(rf"layer{stage}\.([01]\.bn2|0\.downsample\.1)\..*" for stage in (2, 3)),
    ),
    "single": r"conv1\.weight|layer.*\.(conv\d|downsample\.0)\.weight",
    "rescalings": 1,  # the last stage's stream and the head
}
WRITERS = r"w[tp]e\.weight|blocks\.\d\.(attn\.o|proj)\.(weight|bias)"
# per block of the GPT: LN1 x (q, k, v), q x k, v x o, LN2 x fc; and once: LN x head
GPT_RESCALINGS = 2 * 4 + 1

FOREIGN = {
    "torchvision resnet18": Foreign(
        lambda: (torchvision_models().resnet18(num_classes=10), images(side=16)), **RESNET
    ),
    "timm resnet18": Foreign(timm_resnet18, **RESNET, needs="timm"),
    "torchvision vgg11_bn": Foreign(
        vgg11_bn,
        single=r"features\.(0|4|8|11|15|18|22|25)\.weight",
        joint=tuple(rf"features\.{i}\.(weight|bias)" for i in (1, 5, 9, 12, 16, 19, 23)),
        dead=r"features\.(0|4|8|11|15|18|22|25)\.bias",
        rescalings=3,  # the last BN and the three linear layers, which ReLU and pooling join
    ),
    "torchvision mobilenet_v3_small": Foreign(
        mobilenet,
        # convolutions that BN reads; the only writer of its stream (its shift is dead: 1x1 convolutions, then BN)
        single=r"features\.(\d+\.block\.\d|0|12)\.0\.weight|features\.1\.block\.2\.1\.weight",
        joint=(
            *(rf"features\.{i}\.block\.{j}\.1\..*" for i in (2, 3) for j in (0, 1)),  # with ReLU, without squeezing
            r"features\.[23]\.block\.2\.1\.weight",
            r"features\.[4-8]\.block\.3\.1\.weight",
            r"features\.(9|10|11)\.block\.3\.1\.weight",
        ),
        dead=r"features\.(1\.block\.2|[23]\.block\.2|([4-9]|1[01])\.block\.3)\.1\.bias",
        rescalings=9 + 1,  # two layers of each squeezing; the BN before the first, which ReLU joins to it
    ),
    "torchvision densenet": Foreign(
        densenet,
        single=r"features.*\.conv\d?\.weight|features\.conv0\.weight",
        joint=(
            r"features\.norm0\..*",
            r"features\.transition1\.norm\..*",
            *(
                rf"features\.denseblock{block}\.denselayer{layer}\.norm{norm}\..*"
                for block in (1, 2)
                for layer in (1, 2)
                for norm in (1, 2)
            ),
        ),
        rescalings=1,  # the last BN and the head
    ),
    "torchvision shufflenet_v2": Foreign(
        shufflenet,
        # convolutions; scales between a depthwise and a 1x1 convolution, whose shifts are dead
        single=r"(conv1|conv5)\.0\.weight|stage.*\.(branch1\.[02]|branch2\.[035])\.weight"
        r"|stage.*\.(branch1\.1|branch2\.4)\.weight",
        joint=(
            r"conv1\.1\..*",
            *(rf"stage{stage}\.(0\.branch1\.3|\d\.branch2\.6)\..*" for stage in (2, 3, 4)),
            *(rf"stage{stage}\.{block}\.branch2\.1\..*" for stage in (2, 3, 4) for block in (0, 1)),
        ),
        dead=r"stage.*\.(branch1\.1|branch2\.4)\.bias",
        rescalings=1,  # the last BN and the head
    ),
    "GPT pre-LN, untied": Foreign(
        lambda: (GPT(), tokens()), joint=(WRITERS,), dead=r".*\.k\.bias", rescalings=GPT_RESCALINGS
    ),
    "GPT pre-LN, tied": Foreign(
        lambda: (GPT(tied=True), tokens()),
        dead=r".*\.k\.bias",
        rescalings=GPT_RESCALINGS,  # the last LN takes up what the writers, the embedding among them, give back
    ),
    "GPT pre-LN, untied, normalized queries and keys": Foreign(
        lambda: (GPT(qk_norm=True), tokens()),
        joint=(WRITERS, *(rf"blocks\.{i}\.attn\.{name}\.(weight|bias)" for i in (0, 1) for name in "qk")),
        rescalings=GPT_RESCALINGS,  # q x k now by the scales of their normalizations
    ),
    "GPT post-LN, untied": Foreign(
        lambda: (GPT(post=True), tokens()),
        joint=(r"blocks\.1\.ln2\..*",),  # another LN follows
        dead=r".*\.k\.bias",
        # q x k and v x o of each block; LN1 with fc and proj, LN2 with q, k, v, o; LN x head. The embeddings with
        # q, k, v, o of the first block as well
        rescalings=2 * 2 + 2 + 1 + 1 + 1,
    ),
    "GPT with RMSNorm of hard-coded epsilon, ReLU, no biases": Foreign(
        lambda: (GPT(norm=HardCodedRMSNorm, bias=False, activation=torch.relu), tokens()),
        joint=(WRITERS,),
        rescalings=2 * 5 + 1,  # fc x proj as well
    ),
    "torch TransformerEncoder, post-LN, ReLU": Foreign(
        lambda: (Encoder(), vectors(6, 5, 16)),
        # the first LN's output passes the ReLU perceptron and the second LN with its scale, if the biases take it up
        joint=tuple(rf"encoder\.layers\.{i}\.(norm1\..*|linear[12]\.bias)" for i in (0, 1)),
        # linear1 x linear2 of each block; norm2 with the next attention; norm2 x head
        rescalings=2 + 1 + 1,
    ),
    "transformers GPT2, tied": Foreign(gpt2, rescalings=2 * 2 + 1, needs="transformers"),  # LN1 x qkv, LN2 x fc, LN_f
    "transformers Llama, untied": Foreign(
        llama,
        joint=(r"model\.embed_tokens\.weight|model\.layers\.\d\.(self_attn\.o_proj|mlp\.down_proj)\.weight",),
        rescalings=2 * 5 + 1,  # LN x (q, k, v), q x k, v x o, LN x (gate, up), up x down; LN x head
        needs="transformers",
    ),
    "transformers BERT": Foreign(
        bert,
        joint=(r"bert\.embeddings\.(word|position|token_type)_embeddings\.weight",),
        dead=r".*\.key\.bias",
        # q x k, v x o of each block; the LN after attention with fc, proj; the embeddings' and the first block's LN
        # with the next attention. The last LN is read by tanh: its scale with the pooler's matrix
        rescalings=2 * 2 + 2 + 2 + 1,
        needs="transformers",
    ),
    "timm vision transformer": Foreign(
        vit_tiny,
        joint=(
            r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d\.(attn\.proj|mlp\.fc2)\.(weight|bias)",
        ),
        rescalings=2 * 2 + 1,  # LN1 x qkv, LN2 x fc1; LN x head
        needs="timm",
    ),
    "LSTM": Foreign(lambda: (LastState(), vectors(16, 4, 5))),
    "perceptron": Foreign(perceptron),
    "ReLU perceptron": Foreign(relu_perceptron, rescalings=2),
    "group normalization": Foreign(
        group_norms,
        # the first GN's scale and shift with 3.bias are invariant too, but share 3.bias: a rescaling
        joint=(r"0\.(weight|bias)", r"3\.(weight|bias)"),
        rescalings=1 + 1,  # and the last GN and the head
    ),
    "instance normalization": Foreign(instance_norms, single=r"[03]\.weight", dead=r"[03]\.bias"),
    "biases before batch normalization": Foreign(
        biased_perceptron, single=r"[03]\.weight", joint=(r"1\..*",), dead=r"[03]\.bias", rescalings=1
    ),
    "weight normalization": Foreign(
        weight_norms,
        single=r".*\.original1",
        rescalings=1,  # length and bias of the first layer, length of the second
    ),
    "spectral normalization": Foreign(spectral_norms, single=r".*\.original"),
}


def table() -> None:
    """Print what is expected and found for every network, with the largest error and the processor time."""
    from periodic_lib.symmetries import find_groups

    print(f"{'network':58s} groups dead rescalings  error seconds")
    for title, case in FOREIGN.items():
        try:
            torch.manual_seed(0)
            model, example = case.make()
        except ImportError as error:
            print(f"{title:58s} not installed: {error}")
            continue
        begin = time.process_time()
        found = find_groups(model, example, seconds=600)
        spent = time.process_time() - begin
        names = [name for name, _ in model.named_parameters()]
        right = {frozenset(group) for group in found.names} == case.groups(names)
        counts = f"{len(case.groups(names)):3d}/{len(found.groups):<3d}{len(found.dead):4d} {len(found.rescalings):6d}"
        print(f"{title:58s} {counts}   {found.error:9.0e} {spent:6.1f}  {'as expected' if right else 'OTHER'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    table()
