"""Between untrusted text, language models and the IDL: schemas out, strict parsing in, text made harmless on its way.

It is part of mesh because router (outcomes, conversations) and agents (runs, the provider boundary) both need exactly
the same answer to "what may a model see, and what does its answer mean", and neither may import the other. Everything
here is pure: no network, no store, no clock; randomness only where a mark must not be guessable, and injectable there.

    bounds        what protovalidate says about a field, in the words of JSON schema
    tool_schema   an RPC of the catalogue -> what a model is offered, with a digest that pins it
    tool_calls    what a model answered -> the protobuf request, or a short reason fit to be sent back
    cleaning      text without control, invisible and markup characters, cut to size
    redaction     text without secrets
    untrusted     marks that the text inside cannot forge; template plus placeholders
    showing       a protobuf message as a model may see it: SENSITIVE masked, UNTRUSTED marked
    outcomes      the five outcomes a routing model may answer with, and the typed answers of people
"""
