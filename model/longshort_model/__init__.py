"""longshort's offline half: data sets, the network, training, evaluation, export."""
