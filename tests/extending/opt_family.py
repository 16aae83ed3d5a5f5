"""A model family of one's own: the roles of OPT's layers, for channel=neurons and attention=grouped."""

from rowsft.selection.families import Coupling, Family, register_family

register_family(
    Family(
        name="OPT",
        models=("opt",),
        attention=Coupling(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj"),
        mlp=Coupling(("fc1",), "fc2"),
    )
)
